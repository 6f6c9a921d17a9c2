"""What people look at: pictures, what is known, and the site; no Spark."""
