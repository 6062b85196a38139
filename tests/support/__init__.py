"""What tests share: certificates, real upstream peers, the real sidecar process, and callers of it."""
