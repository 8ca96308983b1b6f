"""What Cloud TPU says about a request and its nodes, and what that means for a run."""

import json
from typing import NamedTuple

from launch.pods.execute import Done
from ratjax.errors import nearest

# A request that does not exist.
ABSENT = "ABSENT"

# Verdicts: `wait`, `ready`, or `gone`: the request will never come to anything again, and has to
# be deleted before the next of its name (REST reference of tpu v2, QueuedResourceState).
REQUEST = {
    "CREATING": ("wait", "the request is being looked at"),
    "ACCEPTED": ("wait", "the request is in the queue"),
    "WAITING_FOR_RESOURCES": ("wait", "the request is in the queue until there are free chips"),
    "PROVISIONING": ("wait", "the chips are found; the machines are starting"),
    "ACTIVE": ("ready", "the machines are there"),
    "SUSPENDING": ("gone", "the machines are being taken away"),
    "SUSPENDED": ("gone", "the machines were taken away"),
    "FAILED": ("gone", "the request was refused or ran out of time"),
    "DELETING": ("gone", "the request is being deleted"),
    ABSENT: ("gone", "there is no such request"),
}
# States of a node in which its machines can be reached, or will be by themselves.
NODE_USABLE = ("READY", "CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING", "UNHIDING")


class Request(NamedTuple):
    """A queued resource.

    Attributes:
      state: as Cloud TPU calls it, or `ABSENT`.
      why: what Cloud TPU says about a failure; may be empty.
    """

    state: str
    why: str = ""

    @property
    def verdict(self) -> str:
        # A state that is new to this project is waited for, not deleted.
        return REQUEST.get(self.state, ("wait", ""))[0]

    def __str__(self):
        meaning = REQUEST.get(self.state, ("", f"unknown; {nearest(self.state, REQUEST)}"))[1]
        return f"{self.state}: {meaning}" + (f" ({self.why})" if self.why else "")


def read_request(done: Done) -> Request:
    """The request that `gcloud ... describe --format=json` has described.

    Raises:
      ValueError: it described none, for another reason than that there is none.
    """
    if done.code:
        if "NOT_FOUND" in done.err:
            return Request(ABSENT)
        raise ValueError(done.err)
    state = json.loads(done.out).get("state", {})
    data = state.get("failedData", {}).get("error", {})
    return Request(state.get("state", "STATE_UNSPECIFIED"), data.get("message", ""))
