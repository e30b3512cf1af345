// The bridge that articles write for Server-Sent Events: Express, amqplib's consumer, and a write
// for every client. node sse.mjs AMQP-URL; prints its port.
import { connect } from "amqplib";
import express from "express";

const clients = new Set();
const app = express();
app.get("/sse/topic/benchmark", (request, response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  response.flushHeaders();
  clients.add(response);
  request.on("close", () => clients.delete(response));
});
const server = app.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, async () => {
  const connection = await connect(process.argv[2]);
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, "amq.topic", "benchmark");
  await channel.consume(
    queue,
    (message) => {
      const text = message.content.toString();
      for (const client of clients) client.write(`data: ${text}\n\n`);
    },
    { noAck: true },
  );
  console.log(server.address().port);
});
