"""Pictures for the page: thumbnails, full views, what rendering did, and what the network looked at."""
