"""The generator of styled dialogues in examples/, for tests."""

from __future__ import annotations

import importlib.util

from conftest import ROOT

_spec = importlib.util.spec_from_file_location("styles", ROOT / "examples" / "styles.py")
assert _spec is not None
assert _spec.loader is not None
styles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(styles)
