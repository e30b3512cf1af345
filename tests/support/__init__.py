"""What the tests are written with: servers of their own, a faulty network, ports, skipping."""
