// The bridge that articles write for WebSocket: amqplib's consumer, and a send for every client.
// node ws.mjs AMQP-URL; prints its port.
import { connect } from "amqplib";
import { WebSocket, WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096 });
server.on("listening", async () => {
  const connection = await connect(process.argv[2]);
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, "amq.topic", "benchmark");
  await channel.consume(
    queue,
    (message) => {
      const text = message.content.toString();
      for (const client of server.clients) {
        if (client.readyState === WebSocket.OPEN) client.send(text);
      }
    },
    { noAck: true },
  );
  console.log(server.address().port);
});
