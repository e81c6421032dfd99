"""No placement at all: nothing is held, every step recomputes all keys and values.

The quadratic reference that a KV cache replaces, and the oracle that any exact cache must agree with.
"""

from __future__ import annotations


class Recompute:
    """Marks that no cache is built; the decoding loop feeds the whole sequence each step instead."""
