"""The owner's own work comes first; of each kind, the first to come."""

from node.engine.line import Line


def test_the_sold_wait_while_the_own_do() -> None:
    line: Line[str] = Line()
    for one, sold in (("sold 1", True), ("own 1", False), ("sold 2", True), ("own 2", False)):
        line.join(one, sold)
    order = []
    while (first := line.first()) is not None:
        line.leave(first)
        order.append(first)
    assert order == ["own 1", "own 2", "sold 1", "sold 2"]
    assert len(line) == 0


def test_who_lost_a_place_comes_before_those_of_the_same_kind() -> None:
    line: Line[str] = Line()
    line.join("sold", sold=True)
    line.rejoin("again", sold=True)
    line.join("own", sold=False)
    line.leave("nobody")
    assert line.empty() == ["own", "again", "sold"]
    assert line.first() is None
