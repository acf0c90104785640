// Before a tree is stopped to be copied: the destination makes its shells, and memory for the pages that exist, while
// the tree still runs. No content is sent, and nothing is touched here.
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/events_rounds.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/reserve_wire.h"

namespace migrate {

void SendSession::reserve_ahead() {
  if (precopy_ || !peer_reserves_) return;
  const Clock::time_point began = Clock::now();
  const TreeSurvey survey = survey_tree(target_, *dump_.mappings);
  for (wire::Layout& part : to_wire(survey.layout, 0)) {
    Message message;
    *message.mutable_layout() = std::move(part);
    channel_->send(std::move(message));
  }
  wait_for(Message::kLayoutReady, options_.timeouts.restore);
  uint64_t pages = 0, total = 0;
  for (const PageReserve& reserve : survey.pages) total += reserve.pages;
  for (wire::Reserve& part : to_wire(survey.pages)) {
    for (const wire::Reserve::Run& run : part.runs()) pages += run.pages();
    Message message;
    *message.mutable_reserve() = std::move(part);
    channel_->send(std::move(message));
    wait_for(Message::kReserved, options_.timeouts.restore);
    events_.progress("progress",
                     "memory ready " + human_bytes(pages * kPageSize) + " of " + human_bytes(total * kPageSize),
                     {{"phase", std::string("reserve")},
                      {"bytes", static_cast<int64_t>(pages * kPageSize)},
                      {"total", static_cast<int64_t>(total * kPageSize)}});
  }
  reserved_ = survey.pages;
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - began).count();
  events_.event("reserve", "the destination has made " + human_bytes(pages * kPageSize) + " of memory ready",
                {{"bytes", static_cast<int64_t>(pages * kPageSize)}, {"ms", ms}});
  fault_point("source-agent.reserved");
}

void SendSession::give_back_reserved() {
  const std::vector<PageDiscard> unused = unused_pages(reserved_, memories_);
  if (!unused.empty()) send_discards(unused);
  reserved_.clear();
}

}  // namespace migrate
