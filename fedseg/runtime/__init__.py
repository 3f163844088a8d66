"""The state machines of a study at work: coordinator, site, and both in one process."""
