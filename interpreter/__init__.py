"""The meanings: runs programs, records their graph, and sends it to an endpoint. Imports no torch."""
