#include "migrate/session/source/reserve.h"

#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/reserve_wire.h"

namespace migrate {

using wire::Message;

void Reserve::while_running() {
  if (!tells_layouts()) return;
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  const TreeSurvey survey = survey_tree(p_.target, *p_.dump.mappings);
  p_.peer.send_layout(survey.layout, 0);
  p_.peer.wait_for(Message::kLayoutReady, p_.options.timeouts.restore);
  uint64_t pages = 0, total = 0;
  for (const PageReserve& reserve : survey.pages) total += reserve.pages;
  for (wire::Reserve& part : to_wire(survey.pages)) {
    for (const wire::Reserve::Run& run : part.runs()) pages += run.pages();
    Message message;
    *message.mutable_reserve() = std::move(part);
    p_.peer.channel().send(std::move(message));
    p_.peer.wait_for(Message::kReserved, p_.options.timeouts.restore);
    p_.events.progress("progress",
                       "memory ready " + human_bytes(pages * kPageSize) + " of " + human_bytes(total * kPageSize),
                       {{"phase", std::string("reserve")},
                        {"bytes", static_cast<int64_t>(pages * kPageSize)},
                        {"total", static_cast<int64_t>(total * kPageSize)}});
  }
  reserved_ = survey.pages;
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - began).count();
  p_.events.event("reserve", "the destination has made " + human_bytes(pages * kPageSize) + " of memory ready",
                  {{"bytes", static_cast<int64_t>(pages * kPageSize)}, {"ms", ms}});
  fault_point("source-agent.reserved");
}

void Reserve::frozen(FrozenTree& tree) {
  const std::vector<PageDiscard> unused = unused_pages(reserved_, tree.memories);
  if (!unused.empty()) p_.peer.send_discards(unused);
  reserved_.clear();
}

}  // namespace migrate
