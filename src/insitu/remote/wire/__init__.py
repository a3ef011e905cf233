"""What crosses the wire: one container, values with tags, code as source; never a pickle."""
