// The thread of live-report.ts draws the pages that it is asked for. It answers with nothing where it can't.
import { parentPort } from 'node:worker_threads';
import { searchReport, type SearchSoFar } from './search-report.js';

parentPort!.on('message', (search: SearchSoFar) => {
    void searchReport(search).then(
        (html) => parentPort!.postMessage(html),
        () => parentPort!.postMessage(undefined)
    );
});
