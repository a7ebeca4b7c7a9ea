// The thread of live-report.ts draws the pages that it is asked for.
import { parentPort } from 'node:worker_threads';
import { messageOf } from '../errors.js';
import { searchReport, type SearchSoFar } from './search-report.js';

parentPort!.on('message', (search: SearchSoFar) => {
    void searchReport(search).then(
        (html) => parentPort!.postMessage({ html }),
        (error: unknown) => parentPort!.postMessage({ failed: messageOf(error) })
    );
});
