"""The fit: start, consensus, loop, logs. The only home of lightning, in `placement`."""
