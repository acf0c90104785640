// The destination agent: accepts connections and serves one session after the other.
#include "migrate/session/base/session.h"
#include "migrate/session/destination/receive_session.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

using wire::Message;

class ReceiveAgent {
 public:
  ReceiveAgent(const ReceiveOptions& options, Events& events, const InterruptWatch& interrupt, Logger& log)
      : options_(options),
        events_(events),
        interrupt_(interrupt),
        log_(log),
        connector_(options.link),
        listener_(parse_host_port(options.listen, true)),
        store_(options.state_dir),
        keeper_(cgroup_keeper(log)),
        sessions_(store_, *keeper_, options.timeouts, log) {}

  int run() {
    settle_local(store_, *keeper_, options_.timeouts, events_, log_);
    if (options_.link.insecure && !options_.link.insecure_forced && !listener_.loopback_only()) {
      throw Refusal("--insecure listens on loopback addresses only", "use certificates, or listen on 127.0.0.1");
    }
    events_.event("listening", "listening on " + options_.listen + " (port " + std::to_string(listener_.port()) + ")",
                  {{"port", int64_t{listener_.port()}}});
    signal_status(options_.status_fd);
    while (std::optional<Fd> socket = listener_.accept(&interrupt_.stop())) {
      const std::optional<int> code = serve(std::move(*socket));
      if (code && options_.once) return *code;
    }
    return options_.once ? kFailed : kMoved;  // interrupted
  }

 private:
  /// The exit code of a migration; nullopt for anything else.
  std::optional<int> serve(Fd socket) {
    std::optional<ControlChannel> channel;
    try {
      const Deadline deadline = Deadline::in(options_.timeouts.connect);
      channel.emplace(connector_.accept(std::move(socket), deadline, &interrupt_.stop()));
      channel->stream().set_stop(&interrupt_.stop());
      channel->open(deadline);
      const Message hello = channel->expect(Message::kHello, deadline);
      Message answer;
      *answer.mutable_hello() = host_facts(options_.packed_pages);
      channel->send(std::move(answer));
      check_hello_version(hello.hello());
      Message first = channel->receive(Deadline::in(options_.timeouts.answer));
      if (first.body_case() == Message::kResolve) {
        serve_resolve(*channel, first);
        return std::nullopt;
      }
      events_.event("connect", "connected: " + channel->stream().peer(), {{"peer", channel->stream().peer()}});
      const ReceiveContext context{options_,   events_, interrupt_, listener_,
                                   connector_, store_,  sessions_,  exec_guardian("guardian-destination"),
                                   log_};
      const int code = serve_migration(context, *channel, std::move(first));
      return code == kRefused ? std::nullopt : std::optional(code);
    } catch (const std::exception& e) {
      if (channel) channel->stream().set_stop(nullptr);
      if (channel) channel->refuse(e.what(), dynamic_cast<const StaleEpoch*>(&e) != nullptr);
      events_.event("refused", e.what());
      return std::nullopt;
    }
  }

  void serve_resolve(ControlChannel& channel, const Message& question) {
    Message answer;
    *answer.mutable_answer() = answer_resolve(sessions_, question, channel.stream().peer_name());
    answer.set_session(question.session());
    channel.send(std::move(answer));
    channel.finish();
    events_.event("asked", "the source asked about a session: " + wire::Answer::State_Name(answer.answer().state()));
  }

  const ReceiveOptions& options_;
  Events& events_;
  const InterruptWatch& interrupt_;
  Logger& log_;
  Connector connector_;
  Listener listener_;
  JournalStore store_;
  std::unique_ptr<TreeKeeper> keeper_;
  DestinationSessions sessions_;
};

}  // namespace

int run_receive(const ReceiveOptions& options, Logger& log) {
  PrintedEvents printed(options.report, "receive");
  Events& events = printed;
  try {
    const InterruptWatch interrupt;
    ReceiveOptions adjusted = options;
    adjusted.timeouts = with_test_timeouts(options.timeouts);
    return ReceiveAgent(adjusted, events, interrupt, log).run();
  } catch (const Error& e) {
    events.event("refused", e.what());
    return kRefused;
  } catch (const std::exception& e) {
    events.event("failed", e.what());
    return kFailed;
  }
}

}  // namespace migrate
