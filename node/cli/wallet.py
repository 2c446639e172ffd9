"""`idlemesh wallet`: keys on a chain, channels that buy and sell without trust, and stakes that a cheat would lose."""

import typer

from node.cli import wallet_bonds, wallet_channels, wallet_keys

wallet = typer.Typer(
    help="Money on a chain: see [stablecoin] in config.toml. Example: idlemesh wallet address",
    no_args_is_help=True,
    rich_markup_mode=None,
)
wallet.command()(wallet_keys.create)
wallet.command("import")(wallet_keys.import_key)
wallet.command()(wallet_keys.address)
wallet.command()(wallet_channels.channels)
wallet.command()(wallet_channels.find)
wallet.command()(wallet_channels.deposit)
wallet.command()(wallet_channels.claim)
wallet.command()(wallet_channels.withdraw)
wallet.command()(wallet_bonds.bond)
wallet.command()(wallet_bonds.unbond)
