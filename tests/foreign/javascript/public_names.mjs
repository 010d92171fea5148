// With `node --import`: the public names of Azure in PLACES (JSON: name to port) lead to the embedded Azure on this
// machine, so that a program runs as a document shows it.
import tls from "node:tls";

const places = JSON.parse(process.env.PLACES);
const connect = tls.connect;

tls.connect = (...given) => {
  const options = given.find((one) => typeof one === "object" && one !== null) ?? {};
  const host = options.host ?? given.find((one) => typeof one === "string");
  if (!Object.hasOwn(places, host)) return connect(...given);
  const here = { ...options, host: "localhost", port: places[host], servername: "localhost" };
  return connect(here, given.find((one) => typeof one === "function"));
};
