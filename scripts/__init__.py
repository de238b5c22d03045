import nanochat  # noqa: F401  before a script imports anything: --version, and the line on missing packages
