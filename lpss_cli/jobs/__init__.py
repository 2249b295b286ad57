"""What the commands do, from a request to a written result, without any printing."""
