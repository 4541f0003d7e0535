"""The bridge from a broker of MQTT to a pipeline's topic. Each pipeline with `source.mqtt` has a process of its own."""
