// Loaded before a peer that listens on all addresses: it listens on the loopback one.
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port === "object" && port !== null) return listen.call(this, { ...port, host: "127.0.0.1" }, ...rest);
  return listen.call(this, port, "127.0.0.1", ...rest.filter((one) => typeof one === "function"));
};
