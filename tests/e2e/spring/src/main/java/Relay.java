// Spring's STOMP broker relay without the web application around it: what browsers would send
// comes as commands on stdin, and what they would get is printed, one JSON object a line.
//
//   java -cp … Relay PORT LOGIN PASSCODE BEAT
//   connect SESSION | subscribe SESSION ID DESTINATION | unsubscribe SESSION ID
//   send SESSION DESTINATION BODY | broker DESTINATION BODY | disconnect SESSION [RECEIPT]
//   beat SESSION | bye
//
// BEAT: milliseconds between two heart-beats, both ways and for every connection.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.springframework.messaging.Message;
import org.springframework.messaging.simp.SimpMessagingTemplate;
import org.springframework.messaging.simp.broker.BrokerAvailabilityEvent;
import org.springframework.messaging.simp.stomp.StompBrokerRelayMessageHandler;
import org.springframework.messaging.simp.stomp.StompCommand;
import org.springframework.messaging.simp.stomp.StompHeaderAccessor;
import org.springframework.messaging.support.ExecutorSubscribableChannel;
import org.springframework.messaging.support.MessageBuilder;

public class Relay {
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  private final ExecutorSubscribableChannel inbound = new ExecutorSubscribableChannel();
  private final ExecutorSubscribableChannel outbound = new ExecutorSubscribableChannel();
  private final ExecutorSubscribableChannel broker = new ExecutorSubscribableChannel();
  private final StompBrokerRelayMessageHandler relay =
      new StompBrokerRelayMessageHandler(
          inbound, outbound, broker, List.of("/topic", "/queue", "/exchange"));

  public static void main(String[] arguments) throws Exception {
    new Relay().run(Integer.parseInt(arguments[0]), arguments[1], arguments[2], Long.parseLong(arguments[3]));
  }

  private void run(int port, String login, String passcode, long beat) throws Exception {
    outbound.subscribe(this::tell);
    relay.setRelayHost("127.0.0.1");
    relay.setRelayPort(port);
    relay.setSystemLogin(login);
    relay.setSystemPasscode(passcode);
    relay.setClientLogin(login);
    relay.setClientPasscode(passcode);
    relay.setSystemHeartbeatSendInterval(beat);
    relay.setSystemHeartbeatReceiveInterval(beat);
    relay.setApplicationEventPublisher(
        event -> {
          if (event instanceof BrokerAvailabilityEvent availability) {
            print("event", availability.isBrokerAvailable() ? "available" : "unavailable");
          }
        });
    relay.start();
    SimpMessagingTemplate template = new SimpMessagingTemplate(broker);
    BufferedReader commands =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    String line;
    while ((line = commands.readLine()) != null && !line.equals("bye")) {
      String[] words = line.split(" ", 4);
      switch (words[0]) {
        case "connect" -> {
          StompHeaderAccessor frame = frame(StompCommand.CONNECT, words[1]);
          frame.setAcceptVersion("1.1,1.2");
          frame.setHeartbeat(beat, beat);
          say(frame, "");
        }
        case "subscribe" -> {
          StompHeaderAccessor frame = frame(StompCommand.SUBSCRIBE, words[1]);
          frame.setSubscriptionId(words[2]);
          frame.setDestination(words[3]);
          frame.setReceipt("receipt-" + words[2]);
          say(frame, "");
        }
        case "unsubscribe" -> {
          StompHeaderAccessor frame = frame(StompCommand.UNSUBSCRIBE, words[1]);
          frame.setSubscriptionId(words[2]);
          frame.setReceipt("gone-" + words[2]);
          say(frame, "");
        }
        case "send" -> {
          StompHeaderAccessor frame = frame(StompCommand.SEND, words[1]);
          frame.setDestination(words[2]);
          say(frame, words[3]);
        }
        case "broker" -> {
          String body = line.split(" ", 3)[2];
          template.send(
              words[1],
              MessageBuilder.withPayload(body.getBytes(StandardCharsets.UTF_8)).build());
        }
        case "disconnect" -> {
          StompHeaderAccessor frame = frame(StompCommand.DISCONNECT, words[1]);
          if (words.length > 2) {
            frame.setReceipt(words[2]);
          }
          say(frame, "");
        }
        case "beat" -> {
          StompHeaderAccessor heartbeat = StompHeaderAccessor.createForHeartbeat();
          heartbeat.setSessionId(words[1]);
          say(heartbeat, "\n");
        }
        default -> throw new IllegalArgumentException(line);
      }
    }
    relay.stop();
    System.exit(0);
  }

  private static StompHeaderAccessor frame(StompCommand command, String session) {
    StompHeaderAccessor frame = StompHeaderAccessor.create(command);
    frame.setSessionId(session);
    return frame;
  }

  private void say(StompHeaderAccessor frame, String body) {
    inbound.send(
        MessageBuilder.createMessage(
            body.getBytes(StandardCharsets.UTF_8), frame.getMessageHeaders()));
  }

  private void tell(Message<?> message) {
    StompHeaderAccessor frame = StompHeaderAccessor.wrap(message);
    List<String> pairs = new ArrayList<>();
    pairs.add("event");
    pairs.add(frame.getCommand() == null ? "HEARTBEAT" : frame.getCommand().name());
    pairs.add("session");
    pairs.add(frame.getSessionId());
    for (Map.Entry<String, List<String>> header : frame.toNativeHeaderMap().entrySet()) {
      pairs.add("header." + header.getKey());
      pairs.add(header.getValue().get(0));
    }
    pairs.add("body");
    pairs.add(new String((byte[]) message.getPayload(), StandardCharsets.UTF_8));
    print(pairs.toArray(new String[0]));
  }

  private static synchronized void print(String... pairs) {
    StringBuilder json = new StringBuilder("{");
    for (int index = 0; index < pairs.length; index += 2) {
      json.append(index == 0 ? "" : ", ").append(quoted(pairs[index]));
      json.append(": ").append(quoted(pairs[index + 1]));
    }
    OUT.println(json.append("}"));
  }

  private static String quoted(String text) {
    StringBuilder json = new StringBuilder("\"");
    for (char each : String.valueOf(text).toCharArray()) {
      if (each == '"' || each == '\\' || each < ' ') {
        json.append(String.format("\\u%04x", (int) each));
      } else {
        json.append(each);
      }
    }
    return json.append('"').toString();
  }
}
