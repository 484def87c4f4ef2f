"""The hub of Hugging Face where it cannot be reached: its local cache is read at once, without retries."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_switching = threading.Lock()  # the switch is global to the hub's package


@contextmanager
def hub() -> Iterator[None]:
    """A block that loads from the hub.

    The hub's package tries each file six times, with pauses. Here one request finds out whether the hub
    answers; if it does not, only the local cache is read, and what that lacks is a `ConnectionError`.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT):
        yield
        return
    with _switching:
        chosen = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            why = "HF_HUB_OFFLINE is set" if chosen else f"{constants.ENDPOINT} cannot be reached"
            raise ConnectionError(f"{why}, and {constants.HF_HUB_CACHE} does not hold them") from error
        finally:
            constants.HF_HUB_OFFLINE = chosen


def _answers(address: str, timeout: float) -> bool:
    """Whether an address answers one request, whatever it says."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session().head(address, timeout=timeout)
    except Exception:  # of the package below it, which is another one in each version
        return False
    return True
