"""Memory before and after the fact: what shapes say, what a machine can do, what a run took, and a calculator."""
