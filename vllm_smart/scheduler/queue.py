"""Who waits for a first token, and loses by every millisecond that drafts add to a step."""

from typing import NamedTuple


class Queue(NamedTuple):
    """Requests that have no seat in the batch yet, as far as is known before a step's drafting."""

    num_left: int = 0  # for which the step had no room
    num_arrived: int = 0  # since it was scheduled
    num_seats: int = 0  # that are free

    def num_delayed(self, num_unfilled: int) -> int:
        """Requests whose first token the next step delays by as much as it takes.

        Not those that wait for a seat, or for KV blocks: they come in when others have their tokens, so
        drafts that gain serve them, too.

        Args:
            num_unfilled: requests with a seat whose prompts are not computed yet. While there are none,
                the step's tokens have not run out, and who was left waits for something else.
        """
        could_join = self.num_arrived + (self.num_left if num_unfilled else 0)
        return num_unfilled + min(could_join, self.num_seats)


NOBODY = Queue()
