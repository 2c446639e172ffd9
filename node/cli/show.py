"""What commands print for people."""

from typing import Any

import typer

from node.cli.output import counted, local_time, plain, print_facts, print_table, short, short_time, size

Body = dict[str, Any]


def _running(body: Body) -> None:
    """The models, and what they take."""
    memory = body["memory"]
    rows = [
        (
            one["model"],
            one["state"],
            f"{one['jobs']} of {one['slots']}",
            one["context"],
            size(one["memory"]),
            "no" if one["price"] is None else "yes" if one["for_sale"] else "stopped",
        )
        for one in body["models"]
    ]
    columns = ("model", "is", "jobs", "context", "memory", "sold")
    print_table("Models", columns, rows, "This node runs no models of its own.")
    for one in body["models"]:
        if one["trouble"]:
            typer.secho(f"{plain(one['model'])}: {plain(one['trouble'])}", fg=typer.colors.RED)
    if body["remotes"]:
        remotes = [(one["remote"], one["price"], one["privacy"], one["free_slots"]) for one in body["remotes"]]
        print_table("Remotes", ("remote", "a million in:out", "prompts up to", "free slots"), remotes, "")
    for one in body["remotes"]:
        if one.get("paid_today") is not None:
            typer.echo(
                f"{plain(one['remote'])} was paid {one['paid_today']} today, of {one['max_per_day']} that"
                f" {one['bounded_by']} allows"
            )
        if one["trouble"]:
            typer.secho(f"{plain(one['remote'])} {plain(one['trouble'])}", fg=typer.colors.RED)
    typer.echo(f"Models take {size(memory['taken'])} of {size(memory['allowed'])} that they may take.")


def status(body: Body) -> None:
    """What the node does now."""
    selling = body["selling"]
    typer.echo(f"This node is {body['did']}")
    typer.echo(selling["words"])
    if body["ledger"]["trouble"]:
        typer.echo(f"Nothing is bought or sold: {body['ledger']['trouble']}.")
    if body["ledger"]["shared"]:
        part = {True: "this one leads", False: "another one leads", None: "who leads cannot be told now"}
        typer.echo(f"Other processes may share its ledger: {part[body['ledger']['leads']]}.")
    shown = {"CPU by others": "cpu_by_others", "GPU by others": "gpu_by_others"}
    measured = [f"{name} {selling[key]:.0%}" for name, key in shown.items() if selling.get(key) is not None]
    if measured:
        typer.echo(", ".join(measured))
    if selling.get("not_measured"):
        typer.echo(f"Not measured on this machine: {', '.join(selling['not_measured'])}")
    today = body["today"]
    earned, paid = (", ".join(today[name]) or "nothing" for name in ("earned", "paid"))
    typer.echo(f"Since midnight UTC it has earned {earned} and promised to pay {paid}.")
    for slash in body["slashes"]:
        typer.echo(slash_line(slash))
    if (door := body["door"]) is not None:
        ways = {"batch-settlement": "from channels", "exact": f"by transfers of {door['prepaid']} or more in advance"}
        said = " and ".join(ways[scheme] for scheme in door["schemes"])
        typer.echo(f"Strangers can pay at its door {said}." if said else "Strangers cannot pay at its door now.")
        if door["trouble"]:
            typer.secho(f"{plain(door['trouble'])} ([paid] max_prepaid).", fg=typer.colors.RED)
    if fees := today["network_fees"]:
        typer.echo(f"Its transactions have cost {', '.join(_fee(fee) for fee in fees)}.")
    _running(body)


def _fee(fee: Body) -> str:
    from ledger.rails.stablecoin.networks import in_coins  # of no use to nodes without money on a chain

    return f"{in_coins(fee['wei'], fee['network'])} on {plain(fee['network'])}"


def slash_line(slash: Body) -> str:
    """A slash that is not decided, and until when its seller can do what."""
    what = f"Arbiters want to take {slash['amount']} of the bond {slash['bond'][:14]}, for {slash['evidence'][:14]}"
    if slash["state"] == "answered":
        return (
            f"{what}: it was answered; they may uphold that from {_at(slash['answer_by'])} to {_at(slash['ends_by'])}."
        )
    return f"{what}: answer by {_at(slash['answer_by'])}, or anyone can carry it out (`idlemesh wallet slash --help`)."


def _at(seconds: int) -> str:
    return local_time(1000 * seconds)


def peers(body: Body) -> None:
    """The named peers."""
    rows = [
        (
            short(p["did"]),
            "cheat" if p["condemned"] else p["reputation"],
            p["delivered"],
            p["failed"],
            p["audits_passed"],
            p["trouble"] or (f"sells nothing: {p['paused']}" if p["paused"] else None),
        )
        for p in body["peers"]
    ]
    columns = ("peer", "reputation", "delivered", "failed", "audits passed", "trouble now")
    print_table("Peers", columns, rows, "No peers are named: idlemesh up --peer DID@URL")
    for p in body["peers"]:
        if p["scores_distrusted"]:
            typer.echo(f"{short(p['did'])}: its scores of others' answers are not believed any more: they were wrong.")


def offers(body: Body) -> None:
    """The open offers."""
    rows = [
        (
            "this node" if o["own"] else short(o["seller"]),
            o["model"],
            o["quantization"],
            o["context"],
            o["input"],
            o["output"],
            _computed(o),
        )
        for o in body["offers"]
    ]
    columns = ("seller", "model", "weights", "context", "a million in", "a million out", "computed on")
    if body["selling"]["state"] == "paused":
        typer.echo(f"This node's own offers are withdrawn: {body['selling']['words']}")
    nothing = "No offers are open: sell with --sell IN:OUT, or name peers with --peer DID@URL (`idlemesh peers`)"
    print_table("Offers", columns, rows, nothing, spare=("computed on", "weights", "context"))
    for line in dict.fromkeys(_stake(o) for o in body["offers"] if o["bond"] is not None):
        typer.echo(plain(line))


def _stake(offer: Body) -> str:
    """What the seller of an offer would lose if it is found cheating."""
    bond, seller = offer["bond"], "this node" if offer["own"] else short(offer["seller"])
    said = f"{seller} has {bond['amount']} at stake ({bond['quorum']} of {len(bond['arbiters'])} arbiters)"
    return f"{said}: {bond['counts']} of it counts" + (f"; {bond['why_not']}" if bond["why_not"] else "")


def _computed(offer: Body) -> str:
    """Where an offer's answers are computed, as its seller says."""
    kept = {None: "", "none": ", keeps no prompts"}.get(offer["retention"], f", keeps prompts {offer['retention']}")
    law = f", {offer['jurisdiction']}" if offer["jurisdiction"] else ""
    server = f" {offer['build']}" if offer["backend"] in ("server", "remote") else ""
    return f"{offer['backend']}{server}{law}{kept}"


def receipts(body: Body) -> None:
    """The newest receipts."""
    rows = [
        (
            r["id"][:12],
            short_time(r["finished_ms"]),
            f"score {r['role']}" if r["work"] == "score" else r["role"],
            short(r["seller"] if r["role"] == "bought" else r["buyer"]),
            r["model"],
            f"{r['prompt_tokens']} + {r['output_tokens']}",
            r["cost"],
            _payment(r),
            _found(r["verdicts"][-1]) if r["verdicts"] else "",
        )
        for r in body["receipts"]
    ]
    columns = ("receipt", "finished", "", "with", "model", "tokens", "cost", "paid", "audit")
    print_table("Receipts", columns, rows, "There are no receipts yet.", spare=("with", "audit", "model", "tokens"))


def _found(verdict: Body) -> str:
    return str(verdict["outcome"]) if verdict["tokens"] else "not checked"


def _payment(receipt: Body) -> str:
    if not receipt["acknowledged"]:
        return "not yet"
    if receipt["accepted"]:
        return "yes" if receipt["paid"] == receipt["cost"] else str(receipt["paid"])
    return f"{receipt['paid']}, {'disputed' if receipt['disputed'] is not None else 'resolved'}"


def receipt(body: Body) -> None:
    """One receipt."""
    print_facts({name: value for name, value in body.items() if name != "verdicts" and value is not None})
    for verdict in body["verdicts"]:
        typer.echo(_verdict_line(verdict))


def _verdict_line(verdict: Body) -> str:
    if not verdict["tokens"]:
        return f"audit: {verdict['reason']}"
    return (
        f"audit: {verdict['outcome']}: {verdict['reason']} ({verdict['tokens']} tokens checked, {verdict['odd']} odd, "
        f"mean margin {verdict['margin_mean']:.6f}, largest {verdict['margin_max']:.3f})"
    )


def audit(body: Body) -> None:
    """What an audit found."""
    typer.echo(_verdict_line(body))


def accounts(body: Body) -> None:
    """Every balance."""
    shown = {
        "earned": "earned",
        "promised": "authorized",
        "not promised": "unpaid",
        "to settle": "unsettled",
        "available": "available",
    }
    rows = [
        (short(a["peer"]), a["direction"], a["rail"], *(a[name] for name in shown.values())) for a in body["accounts"]
    ]
    columns = ("peer", "direction", "rail", *shown)
    # Without the rail, two accounts of one peer would look alike.
    first = "rail" if len({(a["peer"], a["direction"]) for a in body["accounts"]}) == len(rows) else "promised"
    print_table("Accounts", columns, rows, "Nobody owes anything.", spare=(first, "earned", "not promised"))
    _effects(body["effects"])
    if body["chain"] == "intact":
        typer.echo(f"The journal is whole: {_checked(body)}.")
    else:
        typer.secho(f"The journal is BROKEN: {body['why']}", fg=typer.colors.RED)
    _compared(body)


def _checked(body: Body) -> str:
    entries, after = counted(body["entries"], "entry", "entries"), body["checked_after"]
    if after == 0:
        return f"{entries}, each chained to the one before"
    return f"{entries}, those after {after} read again now; `idlemesh ledger verify` reads all"


def _compared(body: Body) -> None:
    """What the peers count otherwise, and whether this ledger was cut."""
    for compared in body["comparisons"]:
        for one in compared["differences"]:
            debtor = "they owe" if one["payee"] != compared["peer"] else "you owe"
            typer.secho(
                f"{short(compared['peer'])} counts {one['theirs']} as {one['what']} of what {debtor}, and this node "
                f"{one['ours']}. Both signatures are kept: --json shows them.",
                fg=typer.colors.YELLOW,
            )
    if (cut := body["cut"]) is not None:
        typer.secho(
            f"This ledger was cut or restored from an older copy: it had {counted(cut['left'], 'entry', 'entries')} on "
            f"{local_time(cut['found_ms'])}, when {short(cut['shown_by'])} showed this node's own signature "
            f"under entry {cut['signed']}. No new work starts with a peer before accounts were compared with it.",
            fg=typer.colors.YELLOW,
        )


_WORDS = {
    "planned": "about to be tried",
    "unknown": "unknown: no answer yet",
    "failed": "failed",
    "settled": "done",
    "contradicted": "CONTRADICTED",
}


def _effects(effects: list[Body]) -> None:
    """What rails were asked to move, where there is any; what needs the owner is said in words."""
    if not effects:
        return
    rows = [
        (e["id"][:12], short(e["peer"]), e["rail"], e["kind"].replace("_", " "), e["amount"], _WORDS[e["state"]])
        for e in effects
    ]
    print_table("Under way", ("id", "peer", "rail", "what", "amount", "is"), rows, "")
    for e in effects:
        if e["why"]:
            typer.echo(f"{e['id'][:12]}: {plain(e['why'])}, since {local_time(1000 * e['heard'])}")
        if e["state"] == "contradicted":
            typer.secho(
                f"{e['id'][:12]}: the rail {plain(e['rail'])} does not agree with itself, and {e['moved']} was counted."
                f" Nothing more moves on this account until you have looked there, and run"
                f" `idlemesh retry {e['id'][:12]}` (it is paid once at most) or `idlemesh dismiss {e['id'][:12]}`.",
                fg=typer.colors.RED,
            )
