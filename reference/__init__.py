"""The other engines, each behind one small protocol, and the plain oracle."""
