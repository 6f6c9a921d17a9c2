"""What the network will see of a file, and why: pictures, their story in words, a contact sheet and a page."""
