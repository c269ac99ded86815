"""Who may ask this gateway for what: the rules as types, one function that decides, and where names lead."""
