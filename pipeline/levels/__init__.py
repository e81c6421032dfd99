"""What each level measures; conf/level names the function."""
