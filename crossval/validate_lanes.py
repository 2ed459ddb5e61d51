"""What the commands of `bitnet validate` share: lanes climbed or asked behind a progress bar, and typed failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from bitnet.errors import BitNetError

if TYPE_CHECKING:
    from crossval.lane import Lane
    from crossval.run import Options
    from receipts import record as r

WRONG, NOTHING = 1, 4  # exit codes: something differs; nothing could be concluded
Answer = TypeVar("Answer")


class UnavailableError(BitNetError):
    """A reference is missing or died."""

    exit_code = NOTHING
    severity = "environment"


class InvalidReceiptError(BitNetError):
    """A receipt, or a part of one, breaks a rule."""

    exit_code = 5
    severity = "data"


def typed(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose failures are those that the command line knows."""

    @wraps(command)
    def called(*arguments: Any, **options: Any) -> None:  # the command's own
        from receipts.errors import ReceiptError
        from reference.runner import ReferenceFailedError, ReferenceUnavailableError

        try:
            command(*arguments, **options)
        except (ReferenceUnavailableError, ReferenceFailedError) as error:
            raise UnavailableError(str(error.what), remedy=getattr(error, "remedy", None)) from error
        except ReceiptError as error:
            raise InvalidReceiptError(str(error)) from error

    return called


#: Lanes are climbed for what they show, not for a receipt.
ASIDE: dict[str, Any] = {"measure": False}


def climbed(
    options: Options, watch: Callable[[Lane, r.Lane], None], *, quiet: bool, one: bool = False
) -> Sequence[r.Lane]:
    """Every lane that the options name; with `one`, the only one."""
    from bitnet.cli.output import progress
    from crossval.run import Run, one_of

    with progress("what", quiet=quiet) as bar:
        task = bar.add_task("lanes", total=None, what="reading the models")
        this = Run(options, lambda what: bar.update(task, what=what), watch)
        planned = [one_of(this.plan(), options.only)] if one else this.plan()
        return [this.climb(plan) for plan in bar.track(planned, task_id=task)]


def asked(options: Options, ask: Callable[[Lane], Answer], *, quiet: bool) -> tuple[str, Answer]:
    """What both sides of the one lane that the options name answer, and its name."""
    from bitnet.cli.output import progress
    from crossval.run import Run, one_of

    with progress("what", quiet=quiet) as bar:
        task = bar.add_task("compare", total=None, what="")
        this = Run(options, lambda what: bar.update(task, what=what))
        plan = one_of(this.plan(), options.only)
        lane, _ = this.open(plan)
        try:
            return plan.name, ask(lane)
        finally:
            lane.reference.close()


def code_of(records: Sequence[r.Lane]) -> int:
    """A fault that was found, declared or not, is one here."""
    if any(record.outcome == "fail" for record in records):
        return WRONG
    return 0 if any(record.outcome == "pass" for record in records) else NOTHING
