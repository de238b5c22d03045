import nanochat  # noqa: F401  says in one line which packages are missing, before a script imports them
