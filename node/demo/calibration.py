"""The shipped calibration for the tour and tests, on any CPU: their nodes share a machine, and trade with no other."""

from attrs import evolve

from node.engine.calibration import SHIPPED, CalibrationFiles
from node.models.llama import backend
from verify.calibration import decode


def lend(files: CalibrationFiles) -> None:
    """Take what is shipped for true of this machine's CPU, too, where another one was measured.

    Engines of one machine differ as little from each other on any CPU, so that the tour can show what audits do. No
    bounds for real trade follow from it. Raises OSError.
    """
    here = backend(gpu_layers=0)
    lent = [
        evolve(one, seller=evolve(one.seller, backend=here), checker=evolve(one.checker, backend=here))
        for one in decode(SHIPPED.read_bytes())
    ]
    if any(files.find(one.model, one.seller, one.checker) is None for one in lent):
        files.save(lent[0].model, lent)
