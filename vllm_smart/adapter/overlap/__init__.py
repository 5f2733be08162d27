"""The drafter in a process of its own, which drafts while the target verifies."""
