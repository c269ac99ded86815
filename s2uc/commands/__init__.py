"""The sub-commands of `s2uc`, a module for each noun; `s2uc.cli` loads only what is called."""
