"""`python -m inverselm` is the command `inverselm`."""

from .cli.main import main

raise SystemExit(main())
