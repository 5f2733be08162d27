"""How our settings travel from the front end to vLLM's workers."""

import hashlib
import json
from collections import UserDict
from typing import Any

SETTINGS = "smart"
SOURCE = "smart_source"  # the YAML that the settings were read from, if they were


class AdditionalConfig(UserDict[str, Any]):
    """vLLM's additional config, with our resolved settings in it.

    vLLM compiles a model anew wherever its configuration has another hash, and of a dict it hashes
    every entry. No compiled code depends on ours: an edit of a policy must not cost a compilation.
    """

    def compute_hash(self) -> str:
        """Of everything but our settings."""
        others = {name: value for name, value in self.items() if name not in (SETTINGS, SOURCE)}
        return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
