#include "migrate/session/destination/connection.h"

#include <sys/resource.h>

#include "migrate/session/base/session.h"
#include "migrate/session/destination/feed_intake.h"
#include "migrate/session/destination/receive_session.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

using wire::Message;

/// The daemon's limit bounds strangers; a session is bounded by what it is allowed to receive.
void lift_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// Both sides say what they are. Nothing: that was all the peer wanted to know (`migrate check`).
std::optional<Message> greet(ControlChannel& channel, const ReceiveOptions& options) {
  const Deadline deadline = Deadline::in(options.timeouts.connect);
  channel.open(deadline);
  const Message hello = channel.expect(Message::kHello, deadline);
  Message answer;
  *answer.mutable_hello() = host_facts(options.packed_pages);
  channel.send(std::move(answer));
  check_hello_version(hello.hello());
  return channel.receive_unless_over(Deadline::in(options.timeouts.answer));
}

void answer_question(ControlChannel& channel, DestinationSessions& sessions, Events& events, const Message& question) {
  Message answer;
  *answer.mutable_answer() = answer_resolve(sessions, question, channel.stream().peer_name());
  answer.set_session(question.session());
  const std::string state = wire::Answer::State_Name(answer.answer().state());
  channel.send(std::move(answer));
  channel.finish();
  events.event("asked", channel.stream().peer() + " asked about a session: " + state, {{"state", state}});
}

/// If the peer still listens.
void give_up(ControlChannel& channel, const std::string& session, const Error& why) noexcept {
  try {
    wire::Message message;
    message.set_session(session);
    message.mutable_abort()->set_reason(std::string(why.what()).substr(0, 1000));
    channel.send(std::move(message));
    channel.finish();
  } catch (const std::exception&) {
  }
}

/// Told to the peer, then here.
void refuse(ControlChannel& channel, Events& events, const InterruptWatch& interrupt, const std::exception& why) {
  const std::string reason = interrupt.reason_of(why);
  channel.stream().set_stop(nullptr);
  channel.refuse(reason, dynamic_cast<const StaleEpoch*>(&why) != nullptr);
  events.event("refused", reason);
}

}  // namespace

int serve_connection(const ReceiveOptions& options, const Connector& connector, std::unique_ptr<Stream> stream, Fd link,
                     Logger& log) {
  lift_descriptor_limit();
  PrintedEvents events(options.report, "receive", options.max_sessions == 1);
  const InterruptWatch interrupt;
  DaemonLink daemon(std::move(link));
  ControlChannel channel(std::move(stream));
  channel.stream().set_stop(&interrupt.stop());
  try {
    std::optional<Message> first = greet(channel, options);
    if (!first) {
      channel.finish();
      events.event("looked-at", channel.stream().peer() + " looked at this host, and wants nothing", {});
      return kQuestionAnswered;
    }
    JournalStore store(options.state_dir);
    const std::unique_ptr<TreeKeeper> keeper = cgroup_keeper(log);
    DestinationSessions sessions(store, *keeper, options.timeouts, log);
    if (first->body_case() == Message::kResolve) {
      answer_question(channel, sessions, events, *first);
      return kQuestionAnswered;
    }
    const ReceiveContext context{
        options, events, interrupt, daemon, connector, store, sessions, exec_guardian("guardian-destination"), log};
    if (first->body_case() == Message::kFeed) {
      try {
        return serve_feed(context, channel, *first);
      } catch (const Refusal&) {
        throw;
      } catch (const StaleEpoch&) {
        throw;
      } catch (const Error& e) {
        // No refusal: it comes again, and is told what was in the way.
        events.event("cut", "a feed ended: " + interrupt.reason_of(e), {});
        give_up(channel, first->session(), e);
        return kQuestionAnswered;
      }
    }
    if (const std::string busy = daemon.take_place(Deadline::in(options.timeouts.answer)); !busy.empty())
      throw Refusal("this receiver is busy", busy);
    events.event("connect", "connected: " + channel.stream().peer(), {{"peer", channel.stream().peer()}});
    return ReceiveSession(context, channel).run(std::move(*first));
  } catch (const std::exception& e) {
    refuse(channel, events, interrupt, e);
    return kRefused;
  }
}

}  // namespace migrate
