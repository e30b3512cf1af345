"""The demo: pages that the gateway serves, and the back end that they talk to."""
