"""What tests share: a provider that can fail in every way, real gateways, config builders."""
