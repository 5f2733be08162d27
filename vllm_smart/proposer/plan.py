"""How deep and wide trees grow where that is settled a step ahead."""

from dataclasses import dataclass

import numpy as np

from vllm_smart.config import GrowthLimits


@dataclass(frozen=True)
class LevelPlan:
    """How many rows each further level should have, as the step before has shown.

    A level is decided by the candidates of the one before it, so a plan is at most one level deeper
    than the step that it was made from.
    """

    policy: object | None = None  # that made it; None: there is no plan
    rows_per_request: tuple[float, ...] = ()

    def level_rows(
        self,
        policy: object,
        limits: GrowthLimits,
        num_growing: int,
        max_width: int,
        most_slots: int,
    ) -> list[int]:
        """Rows of each level after the first; without a plan all levels, as wide as may be.

        Args:
            policy: in effect.
            limits: of growth.
            num_growing: requests that have roots.
            max_width: most rows of a request.
            most_slots: most rows of a request in all levels together.
        """
        wanted = self.rows_per_request
        if policy is not self.policy:
            wanted = (float(max_width),) * (limits.depth - 1)
        rows, left = [], most_slots * num_growing
        for each in wanted:
            num_rows = min(int(np.ceil(each * num_growing)), max_width * num_growing, left)
            if num_rows <= 0:
                break
            rows.append(num_rows)
            left -= num_rows
        return rows
