"""Views: pure functions from the engine's values to lines and rows; what the screens show, without a screen."""
