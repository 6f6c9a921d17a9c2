"""What is wrong with an installation, and what to do about it: for ``xray doctor``. Nothing is changed by any of it."""
