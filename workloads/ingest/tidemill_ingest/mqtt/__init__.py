"""The bridge from an MQTT broker to a pipeline's topic. Each pipeline with `source.mqtt` has its own process."""
