"""`python -m insitu`: see `insitu.cli`."""

from insitu.cli import main

main()
