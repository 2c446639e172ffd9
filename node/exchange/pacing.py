"""When the driver of effects looks, tries and asks again: pauses that grow, on a clock that may step back."""

from attrs import define, frozen


@frozen
class Pace:
    """How long the driver waits, in seconds.

    `answer_s` for a rail's answer; `look_s` between two looks at an account's collateral, `look_again_s` where somebody
    says that it has changed, `rest_s` where nothing is at stake and `seldom_s` where nothing lies either; `confirm_s`
    before what settled is asked for once more. Retries wait twice as long each time, from `first_retry_s` to
    `last_retry_s`.
    """

    round_s: float = 5.0
    answer_s: float = 30.0
    look_s: float = 60.0
    look_again_s: float = 2.0
    rest_s: float = 300.0  # less than half of the shortest notice that a channel can have
    seldom_s: float = 3600.0
    confirm_s: float = 600.0
    first_retry_s: float = 2.0
    last_retry_s: float = 3600.0


@define
class Waits:
    """What is remembered of one account between rounds; times are the clock's seconds.

    A clock that was set back makes nothing wait longer.
    """

    pace: Pace
    looked: float | None = None
    look_asked: bool = False  # whether somebody says that the collateral has changed
    told: float | None = None  # when somebody said so last: it may take a while until it shows
    sighted: int = 0  # the rail's count of the last sight
    leaving: int = 0  # what of the collateral its payer is taking back
    pressed: bool = False  # whether a claim was retried because of that
    tried: float | None = None
    pauses: int = 0

    def pause(self, now: float) -> None:
        """It did not go on: wait, longer than the last time."""
        self.tried, self.pauses = now, self.pauses + 1

    def refresh(self) -> None:
        """It went on; what has just moved shows in the collateral, so the next look is due at once."""
        self.tried, self.pauses, self.looked = None, 0, None

    def rested(self, now: float) -> bool:
        """Whether it may be tried again; where collateral is leaving, there is no time for long pauses."""
        longest = self.pace.first_retry_s if self.leaving else self.pace.last_retry_s
        pause = self.pace.first_retry_s * 2.0 ** min(self.pauses - 1, 30)
        return _is_over(self.tried, now, min(pause, longest))

    def look_is_due(self, now: float, at_stake: bool, seldom: bool) -> bool:
        """Whether the collateral is to be looked at: often where something is at stake, or has just been moved."""
        if self.look_asked:
            wait_s = self.pace.look_again_s
        elif at_stake or self.leaving or not _is_over(self.told, now, self.pace.confirm_s):
            wait_s = self.pace.look_s
        else:
            wait_s = self.pace.seldom_s if seldom else self.pace.rest_s
        return _is_over(self.looked, now, wait_s)

    def ask_for_look(self, now: float) -> None:
        """The collateral is to be looked at soon, and often for a while."""
        self.look_asked, self.told = True, now

    def look(self, now: float) -> None:
        """It is being looked at."""
        self.looked, self.look_asked = now, False

    def saw(self, sequence: int, leaving: int) -> bool:
        """Take in a sight of the collateral; whether it is none that another was later than."""
        if sequence < self.sighted:
            return False
        self.sighted, self.leaving = sequence, leaving
        self.pressed = self.pressed and leaving > 0
        return True

    def press(self) -> bool:
        """Whether collateral is leaving and nothing has been tried because of that; from now on, it has."""
        pressing = self.leaving > 0 and not self.pressed
        self.pressed = self.pressed or pressing
        return pressing


def _is_over(since: float | None, now: float, wait_s: float) -> bool:
    return since is None or not 0 <= now - since < wait_s
