// The peer: what a careful Node server does to relay a stream, one pipe per request.
import http from "node:http";

const upstream = new URL(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity });
const server = http.createServer((request, response) => {
  const asked = http.get(
    { host: upstream.hostname, port: upstream.port, path: request.url, agent },
    (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    },
  );
  response.on("close", () => asked.destroy());
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
