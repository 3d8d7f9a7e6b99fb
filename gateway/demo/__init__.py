"""The demo: a scripted provider, a real one, a runaway agent, and what a ceiling does to it. Nothing in the gateway imports it."""
