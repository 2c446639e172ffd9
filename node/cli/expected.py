"""What goes wrong for reasons that the user can mend: said in one line, without a traceback."""

from typing import Final

from ledger.chainfile import NotAChainFile
from ledger.database import LedgerError
from ledger.journal import BrokenChain
from node.backup import NotABackup
from node.cli.output import CommandFailed
from node.config import BadConfig
from node.demo.tour import TourFailed
from node.engine.calibration import TooSmall, Unlike
from node.engine.port import EngineError
from node.engine.recordings import BadRecording
from node.home import HomeError
from node.models.catalogue import NameTaken
from node.models.gguf import BadModelFile
from node.owner_client import CallFailed
from verify.calibration import BadCalibration

EXPECTED: Final = (
    BadCalibration,
    BadConfig,
    BadModelFile,
    BadRecording,
    BrokenChain,
    CallFailed,
    CommandFailed,
    EngineError,
    HomeError,
    LedgerError,
    NameTaken,
    NotABackup,
    NotAChainFile,
    TooSmall,
    TourFailed,
    Unlike,
)
