"""What tests share: certificates, real upstream peers, the real sidecar process, and callers of it."""

import pytest

# So that a failed comparison shows both sides, as one in a test does.
pytest.register_assert_rewrite("support.both_ends", "support.wire")
