"""The guide's submissions: detection, reading, orders, judging, identity, planning and the reply."""
